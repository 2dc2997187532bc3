"""TFRecords of tf.train.Example, ours or those of img2dataset, to be filtered or joined anew."""

from collections.abc import Iterator

import numpy as np

from basic_tf.data.examples import FeatureKeys, parse_example
from basic_tf.data.records import RecordSource
from tools.sources.rows import BadRow, LabelTable, Picture, Row

_READ_AT_ONCE = 256


class RecordFiles:
    """The records of one dataset's json or of a pattern of shards."""

    def __init__(self, path: str, keys: FeatureKeys):
        # Damaged records are ours to count: the source's own budget must not end the reading.
        self._source = RecordSource.open(path, max_damaged_fraction=1.0)
        self._keys, self.total = keys, self._source.count
        said = self._source.metadata
        self.labels = LabelTable(list(said.get("label_names") or ()) or None)
        # A test's labels are numbers of its `classes`; those of bare shards can be anything. None gets lost.
        self._known = len(self.labels.names or said.get("classes") or ()) or None
        # What the json says of its records stays true of some of them; what it says of its files does not.
        own = ("name", "count", "shards", "label_names", "filters", "conversion", "near_duplicates")
        self.facts = {key: value for key, value in self._source.metadata.items() if key not in own}

    def rows(self, pictures: bool = True) -> Iterator[Row | BadRow]:
        """All records."""
        for start in range(0, self.total, _READ_AT_ONCE):
            numbers = np.arange(start, min(start + _READ_AT_ONCE, self.total))
            for number, payload in zip(numbers.tolist(), self._source.read(numbers), strict=True):
                path, offset = self._source.location(number)
                where = {"file": path, "row": number, "offset": offset}
                if payload is None:
                    yield BadRow("damaged record", "a checksum is wrong", where)
                    continue
                try:
                    record = parse_example(payload, self._keys)
                except ValueError as error:
                    yield BadRow("unreadable record", str(error), where)
                    continue
                labels = tuple(record.labels.tolist())
                if self._known and any(not 0 <= label < self._known for label in labels):
                    yield BadRow("unknown label", f"{labels} of {self._known}", where)
                    continue
                yield Row(where, Picture(record.image), record.captions, labels, record.id)

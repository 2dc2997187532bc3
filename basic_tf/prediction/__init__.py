"""What a person does with a SavedModel: classify or search a folder of their own pictures."""

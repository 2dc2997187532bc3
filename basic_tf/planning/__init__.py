"""What a step will need, before anything is launched: parameters, FLOPs, bytes per device."""

"""From a checkpoint to the files that run on a device."""

"""The executor that splits each batch over several processes, which share their memory."""

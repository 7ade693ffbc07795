"""A local stand-in for TensorFlow Serving, run by `keras-pg serve`; extra `serve`."""

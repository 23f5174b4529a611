"""Pictures and captions in, regions that a detector finds and an image–text model believes out. See recipes/grounded/README.md."""

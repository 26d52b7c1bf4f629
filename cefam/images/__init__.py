"""Images: decoding, the view shared by both towers, and mapping regions back to the photograph."""

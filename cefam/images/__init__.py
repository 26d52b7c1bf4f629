"""Images: decoding, the view that both towers get, and the way back to the photograph."""

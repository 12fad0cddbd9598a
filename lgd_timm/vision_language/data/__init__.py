"""Samples of a vision-language data set: an image, its boxes, tags, captions, a question and its answers."""

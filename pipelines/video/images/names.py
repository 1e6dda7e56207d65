"""Names of pictures."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif"),
)
"""Ends of names of pictures. GIF is read as a film (`pipelines.video.pyav_decoder`)."""


def is_picture(uri: str) -> bool:
    """Return whether a file is taken for a picture, by its name."""
    return uri.partition("?")[0].lower().endswith(SUFFIXES)

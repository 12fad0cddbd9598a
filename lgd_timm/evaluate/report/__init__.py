"""`lgd-timm report`: what runs made, as one page that a browser opens from the disk.

collect.py    runs read from their folders; those that differ only in their seed are a group
labels.py     what tells the groups apart, in few words
encode.py     the images of a split through a student, once
figures.py    bars, curves and matrices as PNG (matplotlib)
gallery.py    rows and sheets of images as PNG (Pillow)
overview.py   the sections that compare groups
details.py    the sections that look into one run of a group
page.py       sections as HTML (page.html), nothing in it from elsewhere
write.py      all of it, in order
"""

from .write import report

__all__ = ["report"]

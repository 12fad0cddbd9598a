"""Write a report about runs (`lgd-timm report`): one HTML page that a browser opens from the disk.

collect.py    read runs from their folders; those that differ only in their seed form a group
labels.py     name the groups by the settings in which they differ
encode.py     encode the images of a split with a student
figures.py    draw bars, curves and matrices as PNG (matplotlib)
gallery.py    draw rows and sheets of images as PNG (Pillow)
overview.py   the sections that compare groups
details.py    the sections about one run of a group
page.py       render sections as HTML (page.html), with everything inside the page
write.py      put the report together
"""

from .write import report

__all__ = ["report"]

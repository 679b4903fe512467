"""segnode: a CT that a PACS pushes comes back as a DICOM SEG."""

#: Manufacturer in the objects that this node makes, and how it knows its own when they return.
PRODUCT = "segnode"

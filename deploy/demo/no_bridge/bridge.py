"""The stand-in PACS is nobody's node: its Orthanc runs no code of ours."""

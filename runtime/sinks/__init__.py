"""Where frames go: files, previews; each sink implements the protocol in `base`."""

"""A small game in Panda3D whose drive-in cinema shows a film of what the player does. See README.md."""

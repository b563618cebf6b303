"""The server's side of the wire: a pure core that decides, and the process that gives it sockets and a clock."""

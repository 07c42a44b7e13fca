"""What a call over HTTP is: declared once, guarded and described from that."""

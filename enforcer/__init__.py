"""The enforcer: answers admission hooks and acts when credits run out."""

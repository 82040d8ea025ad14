"""A pipeline schedule as a picture: when every rank computes what, and when it waits."""

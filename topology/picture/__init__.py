"""Pictures of a cluster: SVG, and one self-contained HTML page."""

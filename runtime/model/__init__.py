"""The model in plain torch: blocks and what they are made of, written for one device."""

"""What the owner can set: every key described for a form, and changes of config.toml, checked and kept."""

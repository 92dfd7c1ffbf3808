"""What the home takes of the disk, what may go of it, and the box's daily care for its own data."""

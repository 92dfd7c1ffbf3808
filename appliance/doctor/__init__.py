"""What is wrong with the box and what mends it; which models it can carry. Nothing here changes anything."""

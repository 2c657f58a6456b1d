"""MC dropout: masks of every dropout layer, and the K networks that they make of one."""

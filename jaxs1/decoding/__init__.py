"""From a prompt to a completion: thinking that is kept within its budget, then an answer."""

"""What gradient_comparison and gradient_error share."""

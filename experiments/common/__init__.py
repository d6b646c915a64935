"""What the binaries share: flags, Gin, inputs, outputs, several hosts."""

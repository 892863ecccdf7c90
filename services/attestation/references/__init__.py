"""What devices may boot: values of registers that an organisation accepts."""

"""What the numbers of an organisation stand for, and the documents behind them."""

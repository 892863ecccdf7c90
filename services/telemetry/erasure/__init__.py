"""Events that go before their time: of organisations and devices that are deleted."""

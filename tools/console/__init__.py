"""The parts that all commands share: arguments, opening stores, output as text, tables or JSON."""

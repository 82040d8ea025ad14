"""Runtime: the bundled torch programs that a plan starts on every rank."""

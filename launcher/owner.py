"""Whose a run is: the name under which `parctl list --mine` finds it."""

import getpass
import os
import re


def owner_name() -> str:
    """PARCTL_OWNER, or the name of the user of this machine; empty where there is neither.

    On a shared cluster everybody's machine calls them what they are called there; set PARCTL_OWNER
    where it does not.
    """
    given = os.environ.get("PARCTL_OWNER")
    if given:
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a numeric user without a name
        return ""


def label_value(text: str) -> str:
    """Make a label value out of a name.

    >>> label_value("Ada Lovelace <ada@x.org>")
    'Ada-Lovelace--ada-x.org'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:63].strip("-_.")

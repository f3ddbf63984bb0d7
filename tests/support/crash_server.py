"""What the fork server of publishers imports: see ``tests.support.crash_child``."""

from tests.support.crash_child import prepare

prepare()

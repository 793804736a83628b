"""What this machine cannot imitate is not collected."""

from tests.support.arm_machine import has_tools

collect_ignore = [] if has_tools() else ["test_arm.py"]

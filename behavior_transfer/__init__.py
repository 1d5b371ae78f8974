"""Parts of the two Behavior Transfer programs, pretrain_policy_atari.py and dqn_bt_atari.py."""

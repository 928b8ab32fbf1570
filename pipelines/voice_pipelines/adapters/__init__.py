"""The models, each behind the protocol it fulfils. A module imports its model library only when its class is made."""

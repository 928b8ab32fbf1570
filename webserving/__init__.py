"""What both HTTP servers need and neither owns: connections that owe a request, an orderly end, rules about hosts, Prometheus' text."""

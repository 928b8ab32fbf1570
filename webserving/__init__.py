"""What both HTTP servers need and neither owns: connections that owe a request, rules about hosts, the text that Prometheus reads."""

"""What both HTTP servers and their commands need and neither owns: connections that owe a request, open files, an orderly end, rules about hosts, Prometheus' text."""

def export(*a, **k): raise SystemExit

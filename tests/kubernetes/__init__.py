"""The chart on a real cluster, which `KUBECONFIG` names; without one these tests are skipped."""

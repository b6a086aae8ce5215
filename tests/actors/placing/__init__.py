"""Tests of `actors.placing`."""

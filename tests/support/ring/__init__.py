"""Rigs for a stage and for rings of stages."""

"""Updates of low rank for networks that stay as they are: trained, stored as peft stores them, merged, resized."""

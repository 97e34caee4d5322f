"""Teachers: CED and EfficientAT checkpoints, TFLite and ONNX files, Hugging Face audio classifiers."""

from distill.teachers.base import Teacher
from distill.teachers.load import TeacherSpec, load_teacher, load_teachers, parse_teachers

__all__ = ["Teacher", "TeacherSpec", "load_teacher", "load_teachers", "parse_teachers"]

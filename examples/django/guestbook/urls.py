"""Addresses of the guestbook."""

from django.urls import path

from guestbook import views

urlpatterns = [
    path("", views.index, name="index"),
    path("api/hello", views.hello, name="hello"),
    path("api/entries", views.entries, name="entries"),
    path("stream", views.stream, name="stream"),
    path("upload", views.upload, name="upload"),
    path("sleep", views.sleep, name="sleep"),
]

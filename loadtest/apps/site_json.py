"""A Django project in one file with Django's usual middleware; `/` answers JSON, `/page` a template."""

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.shortcuts import render
from django.urls import path

TEMPLATE = "<ul>{% for item in items %}<li>{{ item }}</li>{% endfor %}</ul>"

settings.configure(
    DEBUG=False,
    SECRET_KEY="only for load tests" * 3,
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"page.html": TEMPLATE})]},
        }
    ],
)
django.setup()


def index(request):
    return JsonResponse({"hello": "world", "path": request.path})


def page(request):
    return render(request, "page.html", {"items": range(50)})


urlpatterns = [path("", index), path("page", page)]
app = get_wsgi_application()

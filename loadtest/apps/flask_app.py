"""Two routes of Flask, answering JSON."""

from flask import Flask, jsonify

app = Flask(__name__)


@app.get("/")
def index():
    return jsonify(hello="world")


@app.get("/users/<int:number>")
def user(number):
    return jsonify(user=number)

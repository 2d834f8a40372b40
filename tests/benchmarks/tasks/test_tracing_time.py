"""The timing of tracing."""

from benchmarks.tasks.tracing_time import TracingTime


def test_table_names_every_model(capsys):
    TracingTime(layers=(1,), width=12).run()
    text = capsys.readouterr().out
    assert "ResNet-50" in text
    assert "transformer, 1 layers" in text

from matplotlib.figure import Figure

from keras_pg.callbacks import LearningCurve


def test_validation_does_not_hide_training_where_both_are_one(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: (figures.append(self), path.touch())
    )
    curve = LearningCurve(tmp_path / "curve.png")
    for epoch in range(2):
        steps = 100.0 * (epoch + 1)
        curve.on_epoch_end(
            epoch, {"env_steps": steps, "episode_return": 500.0, "val_episode_return": 500.0}
        )
    training, validation = figures[-1].axes[0].lines
    assert (training.get_linestyle(), validation.get_linestyle()) == ("-", "--")
    assert training.get_linewidth() > validation.get_linewidth()
    assert training.get_xydata().tolist() == validation.get_xydata().tolist()

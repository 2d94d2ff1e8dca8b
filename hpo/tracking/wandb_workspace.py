"""A W&B workspace for one search. W&B's default workspace shows all runs of a project."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr
from wandb_workspaces.reports import v2 as panels

_CURVES = ("val/ssim", "val/psnr", "val/haarpsi", "train/gen_total")


def save(entity: str, project: str, search: str, params: Iterable[str], fronts: Mapping[str, str]) -> str:
    """Save the workspace of a search, and return its address. The entity is a W&B user or team. fronts: the summary
    metrics of scatter plots, the vertical axis by the horizontal one."""
    columns = [panels.ParallelCoordinatesPlotColumn(metric=panels.Config(name)) for name in params]
    columns += [panels.ParallelCoordinatesPlotColumn(metric=panels.SummaryMetric("best/ssim"))]
    comparisons = [
        panels.ParallelCoordinatesPlot(title="Configurations", columns=columns),
        panels.ParameterImportancePlot(with_respect_to="best/ssim"),
        panels.ScatterPlot(
            title="SSIM against PSNR", x=panels.SummaryMetric("best/psnr"), y=panels.SummaryMetric("best/ssim")
        ),
    ]
    comparisons += [
        panels.ScatterPlot(title=f"{y} against {x}", x=panels.SummaryMetric(x), y=panels.SummaryMetric(y))
        for x, y in fronts.items()
        if x != "best/balanced"
    ]
    curves = [panels.LinePlot(title=name, x="epoch", y=[name]) for name in _CURVES]
    pictures = [panels.MediaBrowser(title="noisy | denoised | clean", media_keys=["val/strip"])]
    workspace = ws.Workspace(
        entity=entity,
        project=project,
        name=f"Search {search}",
        sections=[
            ws.Section(name=name, panels=members, is_open=True)
            for name, members in (("Trials", comparisons), ("Curves", curves), ("Pictures", pictures))
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch"),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == search, expr.Metric("JobType") == "trial")
        ),
    )
    return str(workspace.save().url)
